require("sluice.external_auth").balance()
