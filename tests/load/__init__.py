"""The load test: many sessions through four real daemons, everything checked afterwards."""
