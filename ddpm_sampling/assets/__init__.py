"Data that the library ships: checkpoints, test images, presets and the plotting style; each with its origin beside it."
