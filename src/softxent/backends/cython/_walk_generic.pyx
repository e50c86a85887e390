include "_walk.pxi"
