"""Studies: a file names axes, which become a graph of runs; it is run here, or on a cluster, until all is there."""
