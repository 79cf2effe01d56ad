"""The lab: the whole platform on this machine. Called by `make lab`, `make lab-down` and `make lab-host`."""
