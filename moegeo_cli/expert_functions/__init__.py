"""Experts as functions: calling one, its Jacobian, exchanging one."""
