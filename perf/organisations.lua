-- wrk: POST single events of many organisations in turns. Every request is made beforehand, so that choosing one costs
-- little; each thread begins at its own place.
--
-- Environment: KEYS_FILE, one API key a line. Prints its RESULT (result.lua).

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

-- `done`, from beside this file, wherever wrk was started.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "") .. "result.lua")
