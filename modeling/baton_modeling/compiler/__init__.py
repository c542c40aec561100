"""From a graph of modules with declared placements to a straight-line program per rank."""
