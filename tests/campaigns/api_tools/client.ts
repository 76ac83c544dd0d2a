// A client in TypeScript, checked by the compiler and then run: `node client.ts URL KEY`.
import createClient from "openapi-fetch";
import type { paths, components } from "./schema.d.ts";

declare const process: { argv: string[] };
type Problem = components["schemas"]["Problem"];

const [url, key] = process.argv.slice(2) as [string, string];
const api = createClient<paths>({ baseUrl: url, headers: { "X-API-Key": key } });

function expect(is: boolean, what: string, answer: unknown): void {
  if (!is) throw new Error(`${what}: ${JSON.stringify(answer)}`);
}

const posted = await api.POST("/api/events", { body: { type: "user.login", payload: { user: "ada" } } });
const status: "accepted" | undefined = posted.data?.status;
expect(status === "accepted", "an event is accepted", posted.error);

const batch = await api.POST("/api/events/batch", {
  body: [{ type: "tick", payload: 1 }, { type: "", payload: null }],
});
for (const item of batch.data?.results ?? []) {
  const said: string = "id" in item ? item.id : item.error.detail;
  expect(said.length > 0, "each event of a batch is answered", item);
}
expect(batch.data?.accepted === 1 && batch.data.rejected === 1, "one of two is accepted", batch);

// What is left out has its default: nothing but the URL must be given.
const made = await api.POST("/api/endpoints", { body: { url: "https://example.com/hooks" } });
expect(made.data?.enabled === true && made.data.secret.startsWith("whsec_"), "an endpoint is made", made.error);
const id = made.data!.id;
const changed = await api.PATCH("/api/endpoints/{id}", { params: { path: { id } }, body: { enabled: false } });
expect(changed.data?.enabled === false, "an endpoint is changed", changed.error);

// Every refusal is a Problem.
const refused: Problem | undefined = (await api.POST("/api/endpoints/{id}/test", { params: { path: { id } } })).error;
expect(refused?.code === "endpoint_disabled" && refused.status === 409, "a disabled one is not tested", refused);
const wrong: Problem | undefined = (await api.POST("/api/events", { body: { type: "", payload: null } })).error;
expect(wrong?.errors?.[0]?.field === "type", "the field at fault is named", wrong);

const rotated = await api.POST("/api/endpoints/{id}/rotate-secret", { params: { path: { id } }, body: {} });
expect(rotated.data?.secret !== made.data!.secret, "the secret is another", rotated.error);
const page = await api.GET("/api/endpoints", { params: { query: { limit: 1 } } });
expect(page.data?.data[0]?.id === id && page.data.next_cursor === null, "a page is read", page.error);
