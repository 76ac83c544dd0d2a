-- wrk: POST one single event, the same bytes each time, so that the load generator costs as little as it can.
-- No dedup_id: the server gives each event its own id. No pipelining. No response callback: wrk counts statuses
-- above 399 by itself, and calling Lua for every answer would halve what it can send.
--
-- Environment: MILLRACE_API_KEY, PAYLOAD_BYTES (default 200). Prints its RESULT (result.lua).

local bytes = tonumber(os.getenv("PAYLOAD_BYTES") or "200")
local payload = '{"user":"u-1","ip":"192.0.2.1","note":"%s"}'
payload = payload:format(("x"):rep(math.max(0, bytes - #payload + 2)))

wrk.method = "POST"
wrk.body = '{"type":"user.login","payload":' .. payload .. "}"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = os.getenv("MILLRACE_API_KEY") or ""

-- `done`, from beside this file, wherever wrk was started.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "") .. "result.lua")
