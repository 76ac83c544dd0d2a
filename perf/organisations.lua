-- wrk: POST single events of many organisations in turns. Every request is made beforehand, so that choosing one costs
-- little; each thread begins at its own place.
--
-- Environment: KEYS_FILE, one API key a line. Prints one line `RESULT {…}`, as event.lua does.

local body = '{"type":"user.login","payload":{"user":"u-1","ip":"192.0.2.1","note":"' .. ("x"):rep(160) .. '"}}'
local requests, at = {}, 0
local threads = 0

function setup(thread)
  thread:set("begin", threads)
  threads = threads + 1
end

function init(_)
  for key in io.lines(os.getenv("KEYS_FILE")) do
    requests[#requests + 1] =
      wrk.format("POST", "/api/events", { ["X-API-Key"] = key, ["Content-Type"] = "application/json", ["Host"] = wrk.host }, body)
  end
  at = begin * 5003 % #requests
end

function request()
  at = at % #requests + 1
  return requests[at]
end

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
