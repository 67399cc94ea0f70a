"""The networks before the transformer: perceptron and backpropagation, Hopfield, Boltzmann, deep belief, word vectors.

`rhapsode foundations digits|hopfield|boltzmann|rbm|dbn|words|attention` shows each at work and leaves a page.
"""
