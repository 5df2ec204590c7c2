"""The suite uses the plug-in that xpnn gives to everyone."""

pytest_plugins = ["xpnn.testing.plugin"]
