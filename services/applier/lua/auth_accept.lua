require("sluice.external_auth").accept()
