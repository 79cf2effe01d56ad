"""Tools for a site's operator, and programs that playbooks run on the controller."""
