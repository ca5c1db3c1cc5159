-- etcd v2 PUT of a value of VALUE_BYTES bytes to one of KEYS keys, drawn anew each time.
-- Requests are put together once, so that the generator costs as little as it can.
dofile(os.getenv("BENCH_LUA") .. "/report.lua")

local keys = tonumber(os.getenv("BENCH_KEYS") or "1000")
local bytes = tonumber(os.getenv("BENCH_VALUE_BYTES") or "256")
local requests = {}

function init(args)
   math.randomseed(tonumber(os.getenv("BENCH_SEED") or "1"))
   local headers = { ["Content-Type"] = "application/x-www-form-urlencoded" }
   for n = 1, keys do
      local letter = string.char(97 + n % 26)
      local path = string.format("/v2/keys/bench/%06d", n)
      requests[n] = wrk.format("PUT", path, headers, "value=" .. string.rep(letter, bytes))
   end
end

function request()
   return requests[math.random(keys)]
end

done = function(summary, latency, _) report(summary, latency) end
