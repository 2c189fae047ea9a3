"""Models prepared for export: how they are called, and the inputs on which they are compared."""
