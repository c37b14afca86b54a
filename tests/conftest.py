"""Before torch is imported: waiting threads sleep soon, as in the commands."""

import awqkit.openmp  # noqa: F401
