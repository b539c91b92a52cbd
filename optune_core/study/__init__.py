"""The human study (appendix D): people compare responses of two policies without knowing which is whose."""
