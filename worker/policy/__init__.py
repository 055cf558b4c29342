"""How each host is to be treated, and which addresses may be dialled."""
