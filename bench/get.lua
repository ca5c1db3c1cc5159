-- etcd v2 GET of one of KEYS keys, drawn anew each time; BENCH_QUERY is added to the path.
dofile(os.getenv("BENCH_LUA") .. "/report.lua")

local keys = tonumber(os.getenv("BENCH_KEYS") or "1000")
local query = os.getenv("BENCH_QUERY") or ""
local requests = {}

function init(args)
   math.randomseed(tonumber(os.getenv("BENCH_SEED") or "1"))
   for n = 1, keys do
      requests[n] = wrk.format("GET", string.format("/v2/keys/bench/%06d%s", n, query))
   end
end

function request()
   return requests[math.random(keys)]
end

done = function(summary, latency, _) report(summary, latency) end
