"""The networks before the transformer, to build, to watch and to use: this room stands on `rhapsode.base` alone.

rhapsode foundations digits|hopfield|boltzmann|rbm|dbn|words|attention
"""
