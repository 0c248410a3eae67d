require("sluice.external_auth").prepare()
