"""GAN inversion: a StyleGAN2 generator, and an encoder that finds the latents of an image."""
