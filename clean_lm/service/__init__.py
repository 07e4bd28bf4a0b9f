"""`clean-lm serve`: a small local service for plugins, apps and browsers. The extra `serve` installs what it needs.

command -> app (routes, guards) -> api, plugin -> Service (jobs) -> request.py, which the command line uses too
"""
