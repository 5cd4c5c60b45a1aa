"The command `ddpm`, also as `python -m ddpm_sampling.cli`; its home is the room `app`."
import sys
from .app.commands import main

if __name__ == '__main__': sys.exit(main())
