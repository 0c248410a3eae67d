require("sluice.external_auth").signin()
