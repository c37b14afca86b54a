"""python -m awqkit_runtime: the same commands as awqkit-runtime."""

from awqkit_runtime.cli import main

main()
