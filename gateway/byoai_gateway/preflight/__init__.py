"""`byoai-gateway check`: tries once what the settings name, and says what is wrong with it."""
