"""The routes, one module for each resource. They translate between HTTP and use cases."""
