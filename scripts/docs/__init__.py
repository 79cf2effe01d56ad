"""Write the generated parts of docs/: the roles' variables and the pictures."""
