"""Find which modules of a loaded model are its routers."""
