"""The static site: what each kind of page shows (a module each), its templates, and the building of all of them."""
