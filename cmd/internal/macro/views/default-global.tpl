# {}: messages of the whole node, behind a list of resources
%let{list}{%subst{%the-pretty-global-msg{}}{^.*\bCONNECTED\b.*\n?}{}{mg}}\
%if{%{list}}{\
	++++++++++++ Global / Communication Status ++++++++++++\n\
	%{list}\
}
