require("sluice.external_auth").keep()
