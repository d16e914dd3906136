"""Single experts as functions of their input: values, Jacobians, and changes of their weights."""
