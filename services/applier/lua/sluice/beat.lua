-- Each worker counts, once a second, in shared memory: one whose count stands still does not come round its event loop.
local state = ngx.shared.sluice_state

local EVERY_SECONDS = 1
-- outlives a worker by little: the applier looks every two seconds
local KEPT_SECONDS = 120

local _M = {}

local count = 0

local function beat(premature)
  if not premature then
    count = count + 1
    state:set("beat:" .. ngx.worker.pid(), count, KEPT_SECONDS)
  end
end

function _M.start()
  local ok, err = ngx.timer.every(EVERY_SECONDS, beat)
  if not ok then
    ngx.log(ngx.ERR, "no heartbeat: ", err)
  end
end

-- pid (as text) -> count, of a comma-separated list.
function _M.of(pids)
  local found = { ["0"] = 0 } -- never empty: an empty table would be encoded as it pleases
  for pid in pids:gmatch("%d+") do
    found[pid] = state:get("beat:" .. pid)
  end
  return found
end

return _M
