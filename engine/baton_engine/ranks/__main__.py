"""A follower as a process of its own."""

from baton_engine.ranks.follower import main

main()
