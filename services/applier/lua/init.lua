-- init_by_lua: this generation's node.json, then rows from disk where shared memory is empty. Failing here fails the start, as it must.
-- LuaJIT's defaults (1,000 traces in 512 KB of machine code) are used up by the request path, and it then starts over again and again.
require("jit").opt.start("maxtrace=10000", "maxrecord=20000", "sizemcode=64", "maxmcode=16384")
local prefix = ngx.config.prefix()
local node = require("sluice.node")
node.load(prefix .. "current")
require("resty.core")
require("sluice.tables").load(prefix .. "current", prefix)
require("sluice.router")
require("sluice.certificates")
require("sluice.external_auth")
require("sluice.control")
