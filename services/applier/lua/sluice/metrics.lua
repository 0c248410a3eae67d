-- Request metrics under ingress-nginx's names (metrics.csv), in shared memory; the applier exports them. Only with enable-metrics.
local node = require("sluice.node")

local dict = ngx.shared.sluice_metrics

local TIME = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10 }
local LENGTH = { 10, 20, 30, 40, 50, 60, 70, 80, 90, 100 }
local SIZE = { 10, 100, 1000, 10000, 100000, 1000000, 10000000 }

local HISTOGRAMS = {
  { "request_duration_seconds", "request_time", TIME },
  { "connect_duration_seconds", "upstream_connect_time", TIME },
  { "header_duration_seconds", "upstream_header_time", TIME },
  { "response_duration_seconds", "upstream_response_time", TIME },
  { "request_size", "request_length", LENGTH },
  { "response_size", "bytes_sent", LENGTH },
  { "bytes_sent", "bytes_sent", SIZE },
}

local _M = {}

local function escape(text)
  return (text:gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }))
end

local function add(key, amount)
  -- a full dictionary loses samples, never requests
  dict:incr(key, amount, 0)
end

local METHODS = {}
for name in ("GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE"):gmatch("%S+") do
  METHODS[name] = true
end

local function labels(var)
  local host = node.metrics_per_host and 'host="' .. escape(var.sluice_row ~= "" and var.sluice_row or "_") .. '",' or ""
  local method = METHODS[var.request_method] and var.request_method or "OTHER"
  return host .. 'status="' .. var.status .. '",method="' .. method .. '",path="' .. escape(var.location_path) .. '",namespace="'
    .. escape(var.namespace) .. '",ingress="' .. escape(var.ingress_name) .. '",service="' .. escape(var.service_name)
    .. '",canary="' .. escape(var.proxy_alternative_upstream_name) .. '"'
end

local function observe(name, set, buckets, value)
  for i = 1, #buckets do
    if value <= buckets[i] then
      add(name .. "_bucket{" .. set .. ',le="' .. buckets[i] .. '"}', 1)
    end
  end
  add(name .. "_bucket{" .. set .. ',le="+Inf"}', 1)
  add(name .. "_sum{" .. set .. "}", value)
  add(name .. "_count{" .. set .. "}", 1)
end

-- The log phase of one request.
function _M.note()
  local var = ngx.var
  if var.ingress_name == "" then
    return
  end
  local set = labels(var)
  add("requests{" .. set .. "}", 1)
  for i = 1, #HISTOGRAMS do
    local h = HISTOGRAMS[i]
    local value = tonumber(var[h[2]])
    if value then
      observe(h[1], set, h[3], value)
    end
  end
end

-- `name{labels} value` lines, without the prefix and the labels that are the same for all.
function _M.text()
  local out = {}
  for _, key in ipairs(dict:get_keys(0)) do
    out[#out + 1] = key .. " " .. (dict:get(key) or 0) .. "\n"
  end
  table.sort(out)
  return table.concat(out)
end

return _M
