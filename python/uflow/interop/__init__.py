"""Files and frameworks of others."""
