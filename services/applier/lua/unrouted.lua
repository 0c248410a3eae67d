-- The router ends every request; one that comes through is a bug, and is answered as such.
return ngx.exit(500)
