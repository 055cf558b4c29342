"""The inbox and the arq jobs: two of the three ways in."""
