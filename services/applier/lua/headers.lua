-- Header filter of policies with CORS or external authentication.
local text = ngx.var.sluice_cors
if text ~= "" then
  local cors = require("sluice.cors")
  cors.apply(cors.parse(text))
end
if ngx.var.sluice_auth_result ~= "" then
  require("sluice.external_auth").add_cookies()
end
