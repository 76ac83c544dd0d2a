-- wrk: POST one single event, the same bytes each time, so that the load generator costs as little as it can.
-- No dedup_id: the server gives each event its own id. No pipelining. No response callback: wrk counts statuses
-- above 399 by itself, and calling Lua for every answer would halve what it can send.
--
-- Environment: MILLRACE_API_KEY, PAYLOAD_BYTES (default 200). Prints one line `RESULT {…}` at the end, times in
-- milliseconds. `accepted` is what was answered below 400; a few requests in flight at the end are in no count.

local bytes = tonumber(os.getenv("PAYLOAD_BYTES") or "200")
local payload = '{"user":"u-1","ip":"192.0.2.1","note":"%s"}'
payload = payload:format(("x"):rep(math.max(0, bytes - #payload + 2)))

wrk.method = "POST"
wrk.body = '{"type":"user.login","payload":' .. payload .. "}"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["X-API-Key"] = os.getenv("MILLRACE_API_KEY") or ""

function done(summary, latency, _)
  local e, ms = summary.errors, 1e-3
  local refused = e.status
  local seconds = summary.duration / 1e6
  io.write(string.format(
    'RESULT {"seconds":%.3f,"requests":%d,"accepted":%d,"refused":%d,"accepted_per_second":%.0f,'
      .. '"p50_ms":%.3f,"p90_ms":%.3f,"p99_ms":%.3f,"p999_ms":%.3f,"max_ms":%.3f,'
      .. '"connect_errors":%d,"read_errors":%d,"write_errors":%d,"timeouts":%d}\n',
    seconds, summary.requests, summary.requests - refused, refused, (summary.requests - refused) / seconds,
    latency:percentile(50) * ms, latency:percentile(90) * ms, latency:percentile(99) * ms,
    latency:percentile(99.9) * ms, latency.max * ms, e.connect, e.read, e.write, e.timeout))
end
