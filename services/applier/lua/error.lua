-- custom-http-errors: the failed request becomes `GET /` (its own method) to the error backend; without one, the built-in 404.
local rows = require("sluice.rows")
local balancing = require("sluice.balancing")
local key = ngx.var.sluice_error_backend
local backend = key ~= "" and rows.backend(key)
if not backend or not balancing.alive(backend) then
  return ngx.exec("@sluice_404")
end
ngx.var.sluice_backend = key
ngx.req.set_uri("/", false)
ngx.req.set_uri_args("")
