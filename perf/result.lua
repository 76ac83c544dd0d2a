-- What every script of wrk's prints at the end: one line `RESULT {…}`, times in milliseconds. `accepted` is what was
-- answered below 400; a few requests in flight at the end are in no count.

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
