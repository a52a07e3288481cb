package main

func (b builder) toolbox(work string) error  { return nil }
func (b builder) launcher(work string) error { return nil }
func (b builder) debian(work string) error   { return nil }
