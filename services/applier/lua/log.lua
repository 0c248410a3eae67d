-- Log phase: EWMA scores and request metrics, where they are in use.
local ewma = require("sluice.ewma")
if ewma.used then
  local var = ngx.var
  local seconds = tonumber((var.upstream_response_time or ""):match("([%d.]+)$"))
  local connect = tonumber((var.upstream_connect_time or ""):match("([%d.]+)$")) or 0
  local peer = (var.upstream_addr or ""):match("([^, ]+)$")
  if seconds and peer then
    ewma.note(peer, seconds + connect)
  end
end
if require("sluice.node").metrics then
  require("sluice.metrics").note()
end
