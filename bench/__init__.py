"""Programs that run the whole product and measure it."""
