"""Mean brightness: a linear layer on the features of the backbone."""
