-- Each worker its own random sequence: same seeds would send all workers to the same endpoints.
math.randomseed(ngx.worker.pid() * 7919 + ngx.now() * 1000)
require("sluice.beat").start()
