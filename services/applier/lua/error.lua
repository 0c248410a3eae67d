-- custom-http-errors: the failed request becomes `/` to the route's error backend, else to the global default one, else the built-in 404.
local rows = require("sluice.rows")
local balancing = require("sluice.balancing")

local function alive(key)
  local backend = key and key ~= "" and rows.backend(key)
  return backend and balancing.alive(backend)
end

local key = ngx.var.sluice_error_backend
if not alive(key) then
  key = rows.settings().default_backend
end
if not alive(key) then
  return ngx.exec("@sluice_404")
end
ngx.var.sluice_backend = key
ngx.req.set_uri("/", false)
ngx.req.set_uri_args("")
