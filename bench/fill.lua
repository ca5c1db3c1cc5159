-- Puts every key in turn, so that a read of any of them finds it.
dofile(os.getenv("BENCH_LUA") .. "/report.lua")

local keys = tonumber(os.getenv("BENCH_KEYS") or "1000")
local bytes = tonumber(os.getenv("BENCH_VALUE_BYTES") or "256")
local turn = 0

function request()
   turn = turn % keys + 1
   local headers = { ["Content-Type"] = "application/x-www-form-urlencoded" }
   local path = string.format("/v2/keys/bench/%06d", turn)
   return wrk.format("PUT", path, headers, "value=" .. string.rep("f", bytes))
end

done = function(summary, latency, _) report(summary, latency) end
